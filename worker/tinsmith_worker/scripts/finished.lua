-- What DONE of either kind notes beside a result; stands in front of both scripts.

-- One line a request for the session's trace; looked after each thousandth time only.
local function trace(session, kind, request, future, now, tokens)
  local at, key = redis.call('HMGET', future, 'at', 'state'), 'trace:' .. session
  local ended = string.format('%d%06d', now[1], now[2])
  local length = redis.call('RPUSH', key, table.concat(
    { kind, request, at[1] or ended, ended, at[2], tokens }, ' '))
  if length == 1 or length % 1000 == 0 then
    redis.call('LTRIM', key, -20000, -1)
    redis.call('PEXPIRE', key, 604800000)
  end
end

-- The tenant's last hour in buckets of ten seconds: requests, failures, tokens, and how many requests
-- took 2^(k/2) to 2^((k+1)/2) ms from submit to result. `what` is 't' for a run's ops, 's' for samples.
local function live(tenant, what, submitted, now, tokens, failed)
  local second = tonumber(now[1])
  local key = string.format('live:%s:%d', tenant, second - second % 10)
  if redis.call('HINCRBY', key, what .. ':requests', 1) == 1 then
    redis.call('PEXPIRE', key, 3600000)
  end
  if failed then redis.call('HINCRBY', key, what .. ':failed', 1) end
  if tokens > 0 then redis.call('HINCRBY', key, what .. ':tokens', tokens) end
  local ms = (second * 1e6 + tonumber(now[2]) - tonumber(submitted or 0)) / 1000
  if submitted then
    local k = math.floor(2 * math.log(math.max(ms, 1)) / math.log(2))
    redis.call('HINCRBY', key, string.format('%s:%d', what, k), 1)
  end
end
