-- A request has its result: it no longer counts. Put before the scripts that give one.
local function release(future)
  local at = redis.call('HMGET', future, 'scopes', 'bytes', 'tokens', 'kind')
  for scope in string.gmatch(at[1] or '', '%S+') do
    local load = 'load:' .. scope
    redis.call('HINCRBY', load, 'bytes', -at[2])
    redis.call('HINCRBY', load, 'tokens', -at[3])
    if at[4] == 'sample' then redis.call('HINCRBY', load, 'samples', -1) end
    if redis.call('HINCRBY', load, 'requests', -1) <= 0 then redis.call('DEL', load) end
  end
  redis.call('HDEL', future, 'scopes', 'bytes', 'origin')
end
