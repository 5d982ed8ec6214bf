-- What may come in. Put before the scripts that submit.
-- A scope's row: name requests bytes tokens samples runs per_second per_minute; 0 is no limit.
-- While nothing of a scope waits, one request may be as large as it likes: somebody has to run it.
local WIDTH, CROWDED_MS = 8, 1000
local FIELDS = { 'requests', 'bytes', 'tokens', 'samples' }

local function moment()
  local now = redis.call('TIME')
  return now[1] * 1000000 + now[2]
end

-- Whoever submits is alive, heartbeat or not.
local function heard(name)
  local session = string.match(name, '^[^:]*')
  redis.call('ZADD', 'beats', redis.call('TIME')[1], session)
  redis.call('ZREM', 'silent', session)
end

-- A bucket that may go below zero: whoever finds anything in it takes all that it needs.
local function level(scope, name, per_second, most, now)
  local at = redis.call('HMGET', 'rate:' .. scope, name, name .. '_at')
  if not at[1] then return most end
  return math.min(most, tonumber(at[1]) + (now - tonumber(at[2])) * per_second / 1000000)
end

local function buckets(row)
  local second, minute = tonumber(ARGV[row + 6]), tonumber(ARGV[row + 7])
  local found = {}
  if second ~= 0 then found[#found + 1] = { 'per_second', second, math.max(second, 1), 1 } end
  if minute ~= 0 then found[#found + 1] = { 'per_minute', minute / 60, minute, 0 } end
  return found
end

local function refuse(scope, what, limit, wait_ms)
  local told = scope .. ' ' .. what .. ' ' .. limit .. ' ' .. string.format('%d', wait_ms)
  redis.call('SET', 'paused:' .. scope, told, 'PX', string.format('%d', wait_ms + 5000))
  return { scope, what, limit, string.format('%d', wait_ms) }
end

-- Why not, or nil. Nothing is counted yet: another scope may still refuse.
local function refusal(first, size, tokens, sample, new_run)
  local now = moment()
  local more = { 1, size, tokens, sample and 1 or 0 }
  for row = first, #ARGV, WIDTH do
    local scope = ARGV[row]
    local load = redis.call('HMGET', 'load:' .. scope, unpack(FIELDS))
    for index, name in ipairs(FIELDS) do
      local limit = tonumber(ARGV[row + index])
      local there = tonumber(load[index] or 0)
      if limit ~= 0 and more[index] > 0 and there + more[index] > limit and (there > 0 or limit < 0) then
        return refuse(scope, name, ARGV[row + index], CROWDED_MS)
      end
    end
    local runs = tonumber(ARGV[row + 5])
    if new_run and runs ~= 0 and redis.call('SCARD', 'runs:' .. scope) >= runs then
      return refuse(scope, 'runs', ARGV[row + 5], 10 * CROWDED_MS)
    end
    for _, bucket in ipairs(buckets(row)) do
      local left = level(scope, bucket[1], bucket[2], bucket[3], now)
      if left <= 0 or bucket[2] < 0 then
        local wait = bucket[2] < 0 and 60 or -left / bucket[2]
        return refuse(scope, bucket[1], ARGV[row + (bucket[4] == 1 and 6 or 7)], wait * 1000 + 1)
      end
    end
  end
end

-- It is in: counted until it has its result (release), its rates for good. Answers its scopes.
local function charge(first, size, tokens, sample)
  local now, scopes = moment(), {}
  local more = { 1, size, tokens, sample and 1 or 0 }
  for row = first, #ARGV, WIDTH do
    local scope = ARGV[row]
    scopes[#scopes + 1] = scope
    for index, name in ipairs(FIELDS) do
      if more[index] > 0 then
        redis.call('HINCRBY', 'load:' .. scope, name, string.format('%d', more[index]))
      end
    end
    for _, bucket in ipairs(buckets(row)) do
      local name, cost = bucket[1], bucket[4] == 1 and 1 or tokens
      local left = level(scope, name, bucket[2], bucket[3], now) - cost
      redis.call('HSET', 'rate:' .. scope, name, string.format('%.6f', left),
        name .. '_at', string.format('%d', now))
      redis.call('PEXPIRE', 'rate:' .. scope, 3600000)
    end
  end
  return table.concat(scopes, ' ')
end
