-- Deposits, withdrawals and their limits.
SELECT;
