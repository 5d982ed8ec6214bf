-- One line a request for the session's trace; looked after each thousandth time only. Put before DONE's.
local function trace(session, future, kind, request, tokens)
  local now = redis.call('TIME')
  local at, key = redis.call('HMGET', future, 'at', 'state'), 'trace:' .. session
  local ended = string.format('%d%06d', now[1], now[2])
  local length = redis.call('RPUSH', key, table.concat(
    { kind, request, at[1] or ended, ended, at[2], tokens }, ' '))
  if length == 1 or length % 1000 == 0 then
    redis.call('LTRIM', key, -20000, -1)
    redis.call('PEXPIRE', key, 604800000)
  end
end
