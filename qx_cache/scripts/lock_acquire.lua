-- Take a lock if it is free.
--
-- KEYS[1]  lock        string: the token of the holder
-- KEYS[2]  fence       hash: f last fence, o last holder, r last released token
-- KEYS[3]  ended       string: highest retries with which this very run has ended (only for guarded runs)
--
-- ARGV[1]  token       of this attempt, made by the caller
-- ARGV[2]  ttl_ms      life of the lock without a renewal
-- ARGV[3]  holder      who takes it
-- ARGV[4]  memory_ms   how long the fence is remembered
-- ARGV[5]  retries     which attempt of the run this is
-- ARGV[6]  redelivery  "1": the run's message may have been delivered before
--
-- Replies
--   {"acquired", fence}                     ours now, for ttl_ms
--   {"taken", remaining_ms, fence, holder}  another token holds it
--   {"ended", retries}                      this very run has ended before; nothing changed
--
-- Safe to repeat: the same token gets "acquired" again, with the same fence and a fresh life.

local lock, fence, ended = KEYS[1], KEYS[2], KEYS[3]
local token, ttl_ms, holder, memory_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local retries, redelivery = tonumber(ARGV[5]), ARGV[6] == "1"

local held_by = redis.call("GET", lock)
if held_by == token then
  redis.call("PEXPIRE", lock, ttl_ms)
  return { "acquired", redis.call("HGET", fence, "f") or "0" }
end
if ended and redelivery then
  local before = tonumber(redis.call("GET", ended) or "-1")
  if retries <= before then
    return { "ended", before }
  end
end
if held_by then
  local known = redis.call("HMGET", fence, "f", "o")
  return { "taken", redis.call("PTTL", lock), known[1] or "0", known[2] or "-" }
end

local time = redis.call("TIME")
local last = tonumber(redis.call("HGET", fence, "f") or "0")
local next_fence = string.format("%.0f", math.max(last + 1, time[1] * 1000000 + time[2]))
redis.call("HSET", fence, "f", next_fence, "o", holder)
redis.call("PEXPIRE", fence, memory_ms)
redis.call("SET", lock, token, "NX", "PX", ttl_ms)
return { "acquired", next_fence }
