-- Take a lock, or say who has it and perhaps join those who wait for it.
--
-- KEYS[1]  lock        string: the holder's token; "r:<grant>" while a released lock is reserved for who waits
--                      longest; "k:<token>" while it is kept after its release (min_hold)
-- KEYS[2]  fence       hash: f the last fence, o the holder, r the last released token, x the token of who left
--                      last
-- KEYS[3]  waiting     sorted set: the token of each who waits, by the time (ms) until which that is believed
-- KEYS[4]  baton       list of at most one grant, popped by who waits longest
-- KEYS[5]  ended       retries of a run that has ended under this lock (only for guarded runs)
--
-- ARGV[1]  token       of this holder, made by the caller, new for each acquire
-- ARGV[2]  ttl_ms      life of the lock without a renewal
-- ARGV[3]  holder      task id or label of who asks
-- ARGV[4]  memory_ms   how long fence and last holder are remembered
-- ARGV[5]  wait_ms     how long to be believed to wait when the lock is taken; missing or "": does not wait
-- ARGV[6]  grant       what was popped from the baton; missing or "" for none
-- ARGV[7]  retries     which attempt of the guarded run this is; missing without one
-- ARGV[8]  redelivery  "1": the run may have been delivered before; an ended one is not run again
--
-- Replies
--   {"acquired", fence}                     ours now, for ttl_ms
--   {"taken", remaining_ms, fence, holder}  another holds it, or it is reserved or kept
--   {"ended", retries}                      this run has ended under the lock before
--
-- Safe to repeat: the same token gets "acquired" again, with the same fence and a fresh life.

local lock, fence, waiting, baton, ended = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local token, ttl_ms, holder, memory_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local wait_ms, grant = ARGV[5], ARGV[6]
local retries, redelivery = ARGV[7], ARGV[8] == "1"

local known = redis.call("HMGET", fence, "f", "o", "x")
local last = known[1] or "0"
if known[3] == token then
  return { "taken", 0, last, "-" } -- who asks has left; only its command was still under way
end
if redelivery and redis.call("GET", lock) ~= token then
  local before = tonumber(redis.call("GET", ended) or "-1")
  if tonumber(retries) <= before then
    return { "ended", before }
  end
end

local held_by = redis.call("SET", lock, token, "NX", "GET", "PX", ttl_ms) -- false: it was free, and is ours
if held_by == token then
  redis.call("PEXPIRE", lock, ttl_ms)
  return { "acquired", last }
end
local time = redis.call("TIME")
if held_by then
  local reserved_for = string.match(held_by, "^r:(.*)")
  if not (reserved_for and (reserved_for == grant or redis.call("LPOP", baton))) then
    if wait_ms and wait_ms ~= "" then
      local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
      redis.call("ZADD", waiting, string.format("%.0f", now_ms + wait_ms), token)
      redis.call("PEXPIRE", waiting, wait_ms)
    end
    return { "taken", redis.call("PTTL", lock), last, known[2] or "-" }
  end
  redis.call("SET", lock, token, "PX", ttl_ms)
end

local next_fence = string.format("%.0f", math.max(last + 1, time[1] * 1000000 + time[2]))
redis.call("HSET", fence, "f", next_fence, "o", holder)
redis.call("PEXPIRE", fence, memory_ms)
if wait_ms then
  redis.call("ZREM", waiting, token)
end
return { "acquired", next_fence }
