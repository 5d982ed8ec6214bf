-- COLLECT: put the counts so far aside as one batch; counting goes on in a new hash.
-- ARGV: batch. Answers every batch that is not yet known to be in the database.
if redis.call('EXISTS', 'usage') == 1 then
  redis.call('RENAME', 'usage', 'usage:' .. ARGV[1])
  redis.call('SADD', 'usage:batches', ARGV[1])
end
return redis.call('SMEMBERS', 'usage:batches')
