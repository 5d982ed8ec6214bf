-- A seq that never came: fail it, and what waits behind it, so that the run can go on after them.
-- Nothing behind it runs: it may be the rest of the same batch, or the step that was to follow.
-- ARGV: worker epoch run result_missing result_behind ttl_ms. Answers how many were failed.
local worker, epoch, run = ARGV[1], ARGV[2], ARGV[3]
local missing, behind, ttl = ARGV[4], ARGV[5], ARGV[6]
local at = redis.call('HMGET', 'run:' .. run, 'owner', 'epoch', 'claimed', 'done', 'tenant')
if at[1] ~= worker or at[2] ~= epoch or at[3] ~= at[4] then return 0 end
local first = tonumber(at[4]) + 1
if redis.call('EXISTS', 'fut:' .. run .. ':' .. string.format('%d', first)) == 1 then return 0 end
local last = redis.call('ZRANGE', 'q:' .. run, -1, -1, 'WITHSCORES')[2]
if not last then return 0 end
for seq = first, tonumber(last) do
  local request = run .. ':' .. string.format('%d', seq)
  local result = behind
  if redis.call('EXISTS', 'fut:' .. request) == 0 then
    result = missing
    redis.call('HSET', 'fut:' .. request, 'tenant', at[5], 'run', run, 'seq', seq, 'kind', 'missing')
  end
  if redis.call('HGET', 'fut:' .. request, 'state') ~= 'failed' then
    release('fut:' .. request)
    redis.call('HSET', 'fut:' .. request, 'state', 'failed', 'content', 'json')
    redis.call('SET', 'res:' .. request, result, 'PX', ttl)
    redis.call('PEXPIRE', 'fut:' .. request, ttl)
    redis.call('DEL', 'pl:' .. request)
    redis.call('XADD', 'done', 'MAXLEN', '~', 100000, '*', 'request', request,
      'kind', redis.call('HGET', 'fut:' .. request, 'kind'))
  end
end
redis.call('DEL', 'q:' .. run)
redis.call('HSET', 'run:' .. run, 'claimed', last, 'done', last)
return tonumber(last) - first + 1
