-- What the server is and what this user may do. Before Redis 7 scripts can't know either.
-- KEYS[1] a key that never exists; ARGV[1] the prefix of our keys.
local name = redis.SERVER_NAME or 'redis'
local version = redis.VALKEY_VERSION or redis.REDIS_VERSION or ''
if not redis.acl_check_cmd then
  return {name, version, false}
end
local function key(rest) return ARGV[1] .. rest end
local pool = key('pools:claude-kiro-oauth')
local token = key('tokens:claude-kiro-oauth:x')
local lock = key('token-lock:claude-kiro-oauth:x')
local index = key('kiro:refresh-index:x')
local calls = {
  {'HGETALL', pool}, {'HGET', pool, 'x'}, {'HSET', pool, 'x', 'x'}, {'HSETNX', pool, 'x', 'x'}, {'HDEL', pool, 'x'},
  {'GET', token}, {'SET', token, 'x'}, {'DEL', token},
  {'GET', lock}, {'SET', lock, 'x', 'NX', 'EX', '30'}, {'DEL', lock},
  {'EVALSHA', 'x', '1', lock}, {'EVALSHA', 'x', '1', pool}, {'EVALSHA', 'x', '1', token},
  {'INCRBY', key('kiro:round-robin-counter'), '64'},
  {'GET', key('config')},
  {'GET', index}, {'SET', index, 'x'}, {'DEL', index},
  {'SADD', key('pool-types'), 'x'}, {'SISMEMBER', key('pool-types'), 'x'},
}
local missing = {}
for _, call in ipairs(calls) do
  if not redis.acl_check_cmd(unpack(call)) then
    missing[#missing + 1] = call[1] .. ' ' .. (call[1] == 'EVALSHA' and call[4] or call[2])
  end
end
return {name, version, missing}
