-- DONE: one op of a run has its result. Fenced by owner and epoch; a second DONE changes nothing.
-- ARGV: worker epoch run seq request kind logged failed content result ttl_ms
-- Answers 'new', 'known' or 'fenced'. logged '1': replaying the run must repeat the op, so its body
-- stays until a snapshot covers it. Tokens of a pass are counted by hour, organization, session, kind and
-- base model; only a first DONE counts, so a replay does not.
local worker, epoch, run, seq, request = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local kind, logged, failed, content, result, ttl =
  ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local runkey, future = 'run:' .. run, 'fut:' .. request
local at = redis.call('HMGET', runkey, 'owner', 'epoch')
if at[1] ~= worker or at[2] ~= epoch then return 'fenced' end
local state = redis.call('HGET', future, 'state')
if not state then return 'fenced' end -- lost with Redis's last second: the run goes on without it
if state ~= 'waiting' then return 'known' end
local used = redis.call('HMGET', future, 'tokens', 'tenant')
release(future)
redis.call('SET', 'res:' .. request, result, 'PX', ttl)
redis.call('HSET', future, 'state', failed == '1' and 'failed' or 'done', 'content', content)
redis.call('PEXPIRE', future, ttl)
redis.call('ZREM', 'q:' .. run, request)
if logged == '1' then
  redis.call('RPUSH', 'log:' .. run, request .. ' ' .. kind)
else
  redis.call('DEL', 'pl:' .. request)
end
local claimed = tonumber(redis.call('HGET', runkey, 'claimed'))
while seq < claimed
  and redis.call('HGET', 'fut:' .. run .. ':' .. string.format('%d', seq + 1), 'state') == 'failed' do
  seq = seq + 1 -- tombstones that TAKE had stepped over
end
redis.call('HSET', runkey, 'done', seq)
redis.call('XADD', 'done', 'MAXLEN', '~', 100000, '*', 'request', request, 'kind', kind)
local session = string.match(run, '^[^:]*')
if failed == '0' and (kind == 'forward_backward' or kind == 'forward') then
  local base, second = redis.call('HGET', runkey, 'base_model'), tonumber(redis.call('TIME')[1])
  local whose = (second - second % 3600) .. '|' .. used[2] .. '|' .. session
  redis.call('HINCRBY', 'usage', whose .. '|training|' .. base, used[1])
end
trace(session, future, kind, request, used[1] or 0)
return 'new'
