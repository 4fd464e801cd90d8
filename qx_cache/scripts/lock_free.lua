#!lua flags=allow-oom
-- Free a lock whose holder is known to be gone: for an operator who has seen its fence, or for the parent of a
-- process that has died. Were the holder alive, it would learn that the lock is lost.
--
-- KEYS[1..4]           see lock_acquire.lua
--
-- ARGV[1]  fence       that was seen; "": goes by the two last
-- ARGV[2]  reserve_ms  how long the lock is kept for who waits longest
-- ARGV[3]  grant       for that one
-- ARGV[4]  prefix      what the dead process put before its tokens; missing where the fence is given
-- ARGV[5]  holder      that it worked for
--
-- Replies
--   {"freed"}   the lock is free, or handed over
--   {"other"}   nobody holds it under that fence, or for that process; nothing changed
--
-- Safe to repeat: the second time says "other" and changes nothing.

local lock, fence, waiting, baton = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local seen, reserve_ms, grant, prefix, holder = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local held_by = redis.call("GET", lock)
if not held_by or string.match(held_by, "^r:") then
  return { "other" }
end
local known
if seen ~= "" then
  known = redis.call("HGET", fence, "f") == seen
else
  known = string.sub(held_by, 1, #prefix) == prefix and redis.call("HGET", fence, "o") == holder
end
if not known then
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
