-- Compare-and-delete of a refresh lock (R40).
-- KEYS[1] the lock; ARGV: our value.
-- Replies 1 when it was ours.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
