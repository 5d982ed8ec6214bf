-- BURY: end a lease before its time, unless it was renewed by another connection meanwhile.
-- ARGV: worker lease
local key = 'lease:' .. ARGV[1]
if redis.call('GET', key) == ARGV[2] then return redis.call('DEL', key) end
return 0
