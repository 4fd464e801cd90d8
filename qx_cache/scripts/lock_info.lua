-- Say who holds a lock. Changes nothing.
--
-- KEYS[1..3]  see lock_acquire.lua
-- KEYS[4]     queued  see publish_claim.lua
--
-- Replies
--   {"free", waiters, queued}
--   {"held"|"reserved"|"kept", waiters, queued, remaining_ms, fence, holder}
--
-- queued is the id of work that was published and has not begun, or ""

local lock, fence, waiting, queued = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call("TIME")
local now_ms = string.format("%.0f", time[1] * 1000 + math.floor(time[2] / 1000))
local waiters = redis.call("ZCOUNT", waiting, now_ms, "+inf")

local queued_id = string.match(redis.call("GET", queued) or "", "^c (.*)$") or ""

local held_by = redis.call("GET", lock)
if not held_by then
  return { "free", waiters, queued_id }
end
local state = ({ ["r:"] = "reserved", ["k:"] = "kept" })[string.sub(held_by, 1, 2)] or "held"
local known = redis.call("HMGET", fence, "f", "o")
return { state, waiters, queued_id, redis.call("PTTL", lock), known[1] or "0", known[2] or "-" }
