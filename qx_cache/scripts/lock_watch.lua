#!lua flags=allow-oom
-- Look after several locks on behalf of those who wait for them, for a holder may die without a release.
--
-- KEYS     for each wait: lock, waiting and baton, see lock_acquire.lua
-- ARGV     for each wait: token of who waits, wait_ms, reserve_ms
--
-- Replies  for each wait, in order: the milliseconds after which the lock will be free if nobody renews it
--
-- A lock that is gone is reserved, and its baton handed to who waits longest: not always this one.
-- Safe to repeat: a lock that is held, reserved or kept is left alone.

local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local answers = {}
for i = 1, #KEYS / 3 do
  local lock, waiting, baton = KEYS[3 * i - 2], KEYS[3 * i - 1], KEYS[3 * i]
  local token, wait_ms, reserve_ms = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  if redis.call("GET", lock) ~= token then -- it has come meanwhile
    redis.call("ZADD", waiting, string.format("%.0f", now_ms + wait_ms), token)
    redis.call("PEXPIRE", waiting, wait_ms)
  end
  if redis.call("SET", lock, "r:" .. token, "NX", "PX", reserve_ms) then
    redis.call("DEL", baton)
    redis.call("RPUSH", baton, token)
    redis.call("PEXPIRE", baton, reserve_ms)
  end
  answers[i] = string.format("%.0f", math.max(0, redis.call("PTTL", lock)))
end
return answers
