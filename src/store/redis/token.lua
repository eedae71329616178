-- Compare-and-set of one token record (R21).
-- KEYS[1] the token; ARGV: old bytes, new bytes.
-- Replies 0 absent, 1 written, or the bytes that are there instead.
local current = redis.call('GET', KEYS[1])
if not current then
  return 0
end
if current ~= ARGV[1] then
  return current
end
redis.call('SET', KEYS[1], ARGV[2])
return 1
