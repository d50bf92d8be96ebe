-- Removes what 0001_accept.sql made, but the role, which other databases may use.
DROP FUNCTION inturn.accept;
DROP TABLE inturn.accepted;
DROP VIEW inturn.receiver_version;
REVOKE USAGE ON SCHEMA inturn FROM inturn_receiver;
