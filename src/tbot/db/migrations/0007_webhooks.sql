-- Outbound webhooks.
SELECT;
