-- What only auditors read.
SELECT;
