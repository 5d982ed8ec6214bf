-- DONE: one op of a run has its result. Fenced by owner and epoch; a second DONE changes nothing.
-- ARGV: worker epoch run seq request kind logged failed content result ttl_ms figures
-- Answers 'new', 'known' or 'fenced'. logged '1': replaying the run must repeat the op, so its body
-- stays until a snapshot covers it. Tokens of a pass are counted by hour, organization, session, kind and
-- base model; only a first DONE counts, so a replay does not.
local worker, epoch, run, seq, request = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local kind, logged, failed, content, result, ttl =
  ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local figures = ARGV[12] -- of a pass: loss, weight and drift of its tokens; of a step: grad_norm, learning rate
local runkey, future = 'run:' .. run, 'fut:' .. request
local at = redis.call('HMGET', runkey, 'owner', 'epoch')
if at[1] ~= worker or at[2] ~= epoch then return 'fenced' end
local state = redis.call('HGET', future, 'state')
if not state then return 'fenced' end -- lost with Redis's last second: the run goes on without it
if state ~= 'waiting' then return 'known' end
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
local now, session = redis.call('TIME'), string.match(run, '^[^:]*')
local used = redis.call('HMGET', future, 'tokens', 'tenant', 'at')
if failed == '0' and (kind == 'forward_backward' or kind == 'forward') then
  local base, second = redis.call('HGET', runkey, 'base_model'), tonumber(now[1])
  local whose = (second - second % 3600) .. '|' .. used[2] .. '|' .. session
  redis.call('HINCRBY', 'usage', whose .. '|training|' .. base, used[1])
end
trace(session, kind, request, future, now, used[1] or 0)
live(used[2], 't', used[3], now, tonumber(used[1] or 0), failed == '1')

-- A step's line of the run's curves: the sums of its passes, then what the optimizer says.
local function sums_of_step(loss, weight, drift)
  local key = 'step:' .. run
  local sums = redis.call('HMGET', key, 'loss', 'weight', 'drift', 'tokens')
  redis.call('HSET', key,
    'loss', string.format('%.9g', (tonumber(sums[1]) or 0) + loss),
    'weight', string.format('%.9g', (tonumber(sums[2]) or 0) + weight),
    'drift', drift and string.format('%.9g', (tonumber(sums[3]) or 0) + drift * weight) or sums[3] or '',
    'tokens', (tonumber(sums[4]) or 0) + (tonumber(used[1]) or 0))
  redis.call('PEXPIRE', key, 604800000)
end
if figures ~= '' and failed == '0' then
  local first, second, third = string.match(figures, '^(%S+) (%S+) ?(%S*)$')
  if kind == 'forward_backward' then
    sums_of_step(tonumber(first), tonumber(second), tonumber(third))
  else
    local sums = redis.call('HMGET', 'step:' .. run, 'loss', 'weight', 'drift', 'tokens')
    redis.call('XADD', 'steps', 'MAXLEN', '~', 1000000, '*', 'run', run,
      'step', redis.call('HINCRBY', runkey, 'steps', 1), 'loss', sums[1] or '', 'weight', sums[2] or '',
      'drift', sums[3] or '', 'tokens', sums[4] or 0, 'grad_norm', first, 'learning_rate', second)
    redis.call('DEL', 'step:' .. run)
  end
end
return 'new'
