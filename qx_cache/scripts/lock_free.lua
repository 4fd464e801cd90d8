#!lua flags=allow-oom
-- Free a lock for an operator who has seen its fence; its holder learns that it is lost.
--
-- KEYS[1..4]           see lock_acquire.lua
--
-- ARGV[1]  fence       that was seen
-- ARGV[2]  reserve_ms  how long the lock is kept for who waits longest
-- ARGV[3]  grant       for that one
--
-- Replies
--   {"freed"}   the lock is free, or handed over
--   {"other"}   nobody holds it under that fence; nothing changed
--
-- Safe to repeat: the second time says "other" and changes nothing, for the fence is marked as freed.

local lock, fence, waiting, baton = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local seen, reserve_ms, grant = ARGV[1], ARGV[2], ARGV[3]

local held_by = redis.call("GET", lock)
if not held_by or string.match(held_by, "^r:") or redis.call("HGET", fence, "f") ~= seen then
  return { "other" }
end
if redis.call("EXISTS", waiting) == 0 then
  redis.call("DEL", lock)
else
  redis.call("SET", lock, "r:" .. grant, "PX", reserve_ms)
  redis.call("DEL", baton)
  redis.call("RPUSH", baton, grant)
  redis.call("PEXPIRE", baton, reserve_ms)
end
return { "freed" }
