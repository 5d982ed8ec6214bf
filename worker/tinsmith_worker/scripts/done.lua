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
if redis.call('HGET', future, 'state') ~= 'waiting' then return 'known' end
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
local now, session = redis.call('TIME'), string.match(run, '^[^:]*')
local used = redis.call('HMGET', future, 'tokens', 'tenant')
if failed == '0' and (kind == 'forward_backward' or kind == 'forward') then
  local base, second = redis.call('HGET', runkey, 'base_model'), tonumber(now[1])
  local whose = (second - second % 3600) .. '|' .. used[2] .. '|' .. session
  redis.call('HINCRBY', 'usage', whose .. '|training|' .. base, used[1])
end
-- One line a request for the session's trace; looked after each thousandth time only.
local function trace(session, tokens)
  local at, key = redis.call('HMGET', future, 'at', 'state'), 'trace:' .. session
  local ended = string.format('%d%06d', now[1], now[2])
  local length = redis.call('RPUSH', key, table.concat(
    { kind, request, at[1] or ended, ended, at[2], tokens }, ' '))
  if length == 1 or length % 1000 == 0 then
    redis.call('LTRIM', key, -20000, -1)
    redis.call('PEXPIRE', key, 604800000)
  end
end
trace(session, used[1] or 0)
return 'new'
