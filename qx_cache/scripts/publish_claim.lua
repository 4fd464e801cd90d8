-- Claim a name for work that is about to be published, or say whose work is queued or running under it.
--
-- KEYS[1]  queued      string: "u <id>" of who is about to publish, "c <id>" once it is confirmed that it has
-- KEYS[2]  lock        see lock_acquire.lua
-- KEYS[3]  fence       see lock_acquire.lua
--
-- ARGV[1]  id          of the work
-- ARGV[2]  claim_ms    life of a claim that is not confirmed
-- ARGV[3]  running     "1": work that runs under the lock counts as well
--
-- Replies
--   {"claimed"}      publish, then confirm
--   {"queued", id}   that work waits to be run; its own id: it was published already
--   {"running", id}  that work runs (its id as a lock's holder is written)
--
-- A claim that is not confirmed holds up nobody: its publisher may be dead, and its work never published. So it can
-- cost uniqueness, never work. Safe to repeat: until it is confirmed, the same id gets "claimed" again.

local queued, lock, fence = KEYS[1], KEYS[2], KEYS[3]
local id, claim_ms, running = ARGV[1], ARGV[2], ARGV[3] == "1"

local known = redis.call("GET", queued) or ""
local confirmed = string.match(known, "^c (.*)$")
if confirmed then
  return { "queued", confirmed }
end
if running then
  local held_by = redis.call("GET", lock)
  if held_by and not string.match(held_by, "^[rk]:") then
    local holder = redis.call("HGET", fence, "o")
    if holder and holder ~= id then
      return { "running", holder }
    end
  end
end
redis.call("SET", queued, "u " .. id, "PX", claim_ms)
return { "claimed" }
