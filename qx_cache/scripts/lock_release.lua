#!lua flags=allow-oom
-- Give a lock back: to who waits longest, where somebody waits.
--
-- KEYS[1..5]            see lock_acquire.lua; KEYS[5] only for guarded runs that are to be remembered
--
-- ARGV[1]  token        of the holder
-- ARGV[2]  memory_ms    how long the fence is remembered
-- ARGV[3]  reserve_ms   how long the lock is kept for who waits longest; "0": whoever comes first may take it
-- ARGV[4]  min_hold_ms  the shortest time between acquire and the next holder; missing: none
-- ARGV[5]  retries      which attempt of the guarded run has ended; missing without one
-- ARGV[6]  ended_ms     how long that is remembered
-- ARGV[7]  untold       "1": lock_end.lua is to say that its end has been told; missing: it has
--
-- Replies
--   "released"   the lock is free, handed over, or kept until min_hold_ms have passed
--   "again"      this token released it before: the reply was lost
--   "lost"       it is not this token's any more; another's lock was not touched
--
-- Safe to repeat: the second time says "again" and changes nothing.
-- The wake-up cannot be lost: the grant stays in the list until somebody pops it or the reserve ends.

local lock, fence, waiting, baton, ended = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local token, memory_ms, reserve_ms, min_hold_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4] or "0")
local retries, ended_ms, untold = ARGV[5], ARGV[6], ARGV[7] == "1"

if ended then
  local before = string.match(redis.call("GET", ended) or "", "^%d+")
  if not before or tonumber(before) < tonumber(retries) then
    local time = redis.call("TIME")
    local now_ms = string.format("%.0f", time[1] * 1000 + math.floor(time[2] / 1000))
    redis.call("SET", ended, untold and retries .. " " .. now_ms or retries, "PX", ended_ms)
  end
end
if redis.call("GET", lock) ~= token then
  return redis.call("HGET", fence, "r") == token and "again" or "lost"
end

local kept_ms = 0
if min_hold_ms > 0 then
  local time = redis.call("TIME")
  local since_us = tonumber(redis.call("HGET", fence, "f") or "0") -- a fence is the time of its acquire
  local held_ms = math.floor((time[1] * 1000000 + time[2] - since_us) / 1000)
  kept_ms = min_hold_ms - math.max(0, held_ms)
end
if redis.call("HSET", fence, "r", token) == 1 then -- else it is there, and has the life that the acquire gave it
  redis.call("PEXPIRE", fence, memory_ms)
end
if kept_ms > 0 then
  redis.call("SET", lock, "k:" .. token, "PX", kept_ms)
elseif redis.call("EXISTS", waiting) == 0 then
  redis.call("DEL", lock)
else
  if reserve_ms ~= "0" then
    redis.call("SET", lock, "r:" .. token, "PX", reserve_ms)
  else
    redis.call("DEL", lock)
  end
  redis.call("DEL", baton)
  redis.call("RPUSH", baton, token)
  redis.call("PEXPIRE", baton, 1000)
end
return "released"
