-- Asks a fresh connection for a write that changes nothing, so that a replica or a loading server shows itself (R49).
-- KEYS[1] a key that never exists.
return redis.call('DEL', KEYS[1])
