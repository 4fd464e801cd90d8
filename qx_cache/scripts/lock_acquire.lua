-- Take a lock, or say who has it and perhaps join those who wait for it.
--
-- KEYS[1]  lock        string: the holder's token; "r:<grant>" while a released lock is reserved for who waits
--                      longest; "k:<token>" while it is kept after its release (min_hold)
-- KEYS[2]  fence       hash: f the last fence, o the holder, r the last released token, x the token of who left
--                      last, l the highest number that was published (publish_latest.lua)
-- KEYS[3]  waiting     sorted set: the token of each who waits, by the time (ms) until which that is believed
-- KEYS[4]  baton       list of at most one grant, popped by who waits longest
-- KEYS[5]  ended       retries of a run that has ended under this lock (only for guarded runs); and the time (ms)
--                      of that while it is not known whether who awaits the run was told: for ttl_ms it may yet be
-- KEYS[6]  queued      who claimed the name when it was published, see publish_claim.lua (only where the run did)
--
-- ARGV[1]  token       of this holder, made by the caller, new for each acquire
-- ARGV[2]  ttl_ms      life of the lock without a renewal
-- ARGV[3]  holder      task id or label of who asks
-- ARGV[4]  memory_ms   how long fence and last holder are remembered
-- ARGV[5]  wait_ms     how long to be believed to wait when the lock is taken; missing or "": does not wait
-- ARGV[6]  grant       what was popped from the baton; missing or "" for none
-- ARGV[7]  retries     which attempt of the guarded run this is; missing without one
-- ARGV[8]  redelivery  "1": the run may have been delivered before; an ended one is not run again
-- ARGV[9]  number      of the run's publication; missing or "": it has none
-- ARGV[10] refusal     "1": the run is over when another holds the lock, and so is its claim
--
-- Replies
--   {"acquired", fence}                     ours now, for ttl_ms
--   {"taken", remaining_ms, fence, holder}  another holds it, or it is reserved or kept
--   {"ended", retries}                      this run has ended under the lock before
--   {"superseded", latest, holder}          newer work was published; this run is over before it began
--
-- Safe to repeat: the same token gets "acquired" again, with the same fence and a fresh life.

local lock, fence, waiting, baton, ended, queued = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local token, ttl_ms, holder, memory_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local wait_ms, grant = ARGV[5], ARGV[6]
local retries, redelivery, number, refusal = ARGV[7], ARGV[8] == "1", ARGV[9], ARGV[10] == "1"

local function unqueue()
  if queued and string.sub(redis.call("GET", queued) or "", 3) == holder then
    redis.call("DEL", queued)
  end
end

local known = redis.call("HMGET", fence, "f", "o", "x", "l")
local last = known[1] or "0"
if known[3] == token then
  return { "taken", 0, last, "-" } -- who asks has left; only its command was still under way
end
local time = redis.call("TIME")
if redelivery and redis.call("GET", lock) ~= token then
  local before, untold_at = string.match(redis.call("GET", ended) or "-1", "^(%S+) ?(%d*)$")
  before = tonumber(before)
  if tonumber(retries) < before or (tonumber(retries) == before and untold_at == "") then
    unqueue()
    return { "ended", before }
  elseif tonumber(retries) == before then
    local left_ms = untold_at + ttl_ms - (time[1] * 1000 + math.floor(time[2] / 1000))
    if left_ms > 0 then
      return { "taken", left_ms, last, holder }
    end
  end
end

if number and number ~= "" then
  local latest = tonumber(known[4] or "0")
  if tonumber(number) < latest then
    local held_by = redis.call("GET", lock)
    local runs = held_by and not string.match(held_by, "^[rk]:") and known[2] == holder
    if not runs then
      unqueue()
      return { "superseded", known[4], known[2] or "-" }
    end
  elseif tonumber(number) > latest then -- what is delivered was published, whether its publisher came to say so
    redis.call("HSET", fence, "l", number)
    if redis.call("PTTL", fence) < 0 then
      redis.call("PEXPIRE", fence, memory_ms)
    end
  end
end

local held_by = redis.call("SET", lock, token, "NX", "GET", "PX", ttl_ms) -- false: it was free, and is ours
if held_by == token then
  redis.call("PEXPIRE", lock, ttl_ms)
  unqueue()
  return { "acquired", last }
end
if held_by then
  local reserved_for = string.match(held_by, "^r:(.*)")
  if not (reserved_for and (reserved_for == grant or redis.call("LPOP", baton))) then
    if wait_ms and wait_ms ~= "" then
      local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
      redis.call("ZADD", waiting, string.format("%.0f", now_ms + wait_ms), token)
      redis.call("PEXPIRE", waiting, wait_ms)
    end
    if refusal and known[2] ~= holder then
      unqueue()
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
unqueue()
return { "acquired", next_fence }
