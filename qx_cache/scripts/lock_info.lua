-- Say who holds a lock. Changes nothing.
--
-- KEYS[1..3]  see lock_acquire.lua
--
-- Replies
--   {"free", waiters}
--   {"held"|"reserved"|"kept", waiters, remaining_ms, fence, holder}

local lock, fence, waiting = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call("TIME")
local now_ms = string.format("%.0f", time[1] * 1000 + math.floor(time[2] / 1000))
local waiters = redis.call("ZCOUNT", waiting, now_ms, "+inf")

local held_by = redis.call("GET", lock)
if not held_by then
  return { "free", waiters }
end
local state = ({ ["r:"] = "reserved", ["k:"] = "kept" })[string.sub(held_by, 1, 2)] or "held"
local known = redis.call("HMGET", fence, "f", "o")
return { state, waiters, redis.call("PTTL", lock), known[1] or "0", known[2] or "-" }
