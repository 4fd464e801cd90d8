#!lua flags=allow-oom
-- Wait no more, and hand on whatever came meanwhile.
--
-- KEYS[1..4]           see lock_acquire.lua
--
-- ARGV[1]  token       of who waited
-- ARGV[2]  reserve_ms  how long the lock is kept for who waits longest
-- ARGV[3]  memory_ms   how long it is remembered that this token left: its acquire may still be under way
--
-- Replies
--   {"left"}        nothing had come
--   {"handed on"}   the lock, or the baton, had come and went to the next, or the lock is free
--
-- A baton that was popped cannot be told from one that another has just popped, so it is pushed again: whoever
-- pops it in vain goes on waiting. Safe to repeat.

local lock, fence, waiting, baton = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, reserve_ms, memory_ms = ARGV[1], ARGV[2], ARGV[3]

redis.call("ZREM", waiting, token)
redis.call("HSET", fence, "x", token)
if redis.call("PTTL", fence) < 0 then
  redis.call("PEXPIRE", fence, memory_ms)
end
local held_by = redis.call("GET", lock)
local ours = held_by == token
local reserved_for = held_by and string.match(held_by, "^r:(.*)")
if not ours and not (reserved_for and redis.call("EXISTS", baton) == 0) then
  return { "left" }
end
if ours then
  redis.call("HSET", fence, "r", token)
end
if redis.call("EXISTS", waiting) == 0 then
  redis.call("DEL", lock)
  return { "handed on" }
end
if ours then
  reserved_for = token
  redis.call("SET", lock, "r:" .. token, "PX", reserve_ms)
end
redis.call("RPUSH", baton, reserved_for)
redis.call("PEXPIRE", baton, reserve_ms)
return { "handed on" }
