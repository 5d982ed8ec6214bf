-- CANCEL what a run or a sampling session still waits for, from a seq on, in work or not. What a run
-- has in work before that seq begins again: its home loses what it has begun, by a new epoch.
-- ARGV: line from result ttl_ms, '1' if only while `from` itself has no result.
-- Answers how many were cancelled.
local line, from, result, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if ARGV[5] == '1' and redis.call('HGET', 'fut:' .. line .. ':' .. from, 'state') ~= 'waiting' then
  return 0
end
local function fail(request, kind)
  local future = 'fut:' .. request
  release(future)
  redis.call('HSET', future, 'state', 'failed', 'content', 'json')
  redis.call('PEXPIRE', future, ttl)
  redis.call('SET', 'res:' .. request, result, 'PX', ttl)
  redis.call('DEL', 'pl:' .. request)
  redis.call('XADD', 'done', 'MAXLEN', '~', 100000, '*', 'request', request, 'kind', kind)
end
local cancelled, last = 0, nil
for _, request in ipairs(redis.call('ZRANGEBYSCORE', 'q:' .. line, from, '+inf')) do
  local at = redis.call('HMGET', 'fut:' .. request, 'state', 'kind', 'clone')
  if at[1] == 'waiting' then
    fail(request, at[2])
    cancelled = cancelled + 1
    if at[2] == 'sample' then
      local list = 'comp:' .. line .. ':' .. at[3]
      redis.call('RPUSH', list, 'failed ' .. #result .. ' ' .. request)
      redis.call('PEXPIRE', list, ttl)
      redis.call('ZREM', 'q:' .. line, request)
      redis.call('XADD', 'ctl', 'MAXLEN', '~', 10000, '*', 'cancel', request)
    end
  end
  last = tonumber(string.match(request, ':(%d+)$'))
end
local at = redis.call('HMGET', 'run:' .. line, 'owner', 'done', 'tenant')
if not at[1] or cancelled == 0 then return cancelled end
-- A number that never came would be waited for: it is failed with the rest.
for seq = math.max(tonumber(from), tonumber(at[2]) + 1), last do
  local request = line .. ':' .. string.format('%d', seq)
  if redis.call('EXISTS', 'fut:' .. request) == 0 then
    redis.call('HSET', 'fut:' .. request, 'tenant', at[3], 'run', line, 'seq', seq, 'kind', 'missing')
    fail(request, 'missing')
  end
end
redis.call('HINCRBY', 'run:' .. line, 'epoch', 1)
redis.call('HSET', 'run:' .. line, 'claimed', at[2])
redis.call('RPUSH', 'inbox:' .. at[1], line)
redis.call('PEXPIRE', 'inbox:' .. at[1], 3600000)
return cancelled
