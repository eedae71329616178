-- Compare-and-set of one account record (R21).
-- KEYS[1] the pool; ARGV: account id, old bytes, new bytes.
-- Replies 0 absent, 1 written, or the bytes that are there instead.
local current = redis.call('HGET', KEYS[1], ARGV[1])
if not current then
  return 0
end
if current ~= ARGV[2] then
  return current
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
