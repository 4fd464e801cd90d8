#!lua flags=allow-oom
-- Renew the leases of several claims in one call.
--
-- KEYS[i]        record i     see claim.lua
--
-- ARGV[3i-2]     owner i      token of the claim
-- ARGV[3i-1]     lease_ms i   life of the claim from now
-- ARGV[3i]       keep_ms i    how much longer the record stays
--
-- Reply: one word a record
--   "renewed"  still ours, for lease_ms
--   "over"     ours, and finished or given back already: nothing to renew
--   "lost"     another owner's, vanished, or unreadable; nothing changed
--
-- Safe to repeat. A renewal never creates a record.

local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local words = {}

for i, record in ipairs(KEYS) do
  local owner, lease_ms, keep_ms = ARGV[3 * i - 2], tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local header = redis.call("GETRANGE", record, 0, 511)
  local start, state, fence, rest, s_owner, tail =
    string.match(header, "^(1) (%S+) (%S+) %S+ (%S+ %S+ %S+) (%S+) (%S+ %S+)\n")
  if not start or s_owner ~= owner then
    words[i] = "lost"
  elseif state ~= "running" then
    words[i] = "over"
  else
    local until_ms = string.format("%.0f", now_ms + lease_ms)
    header = table.concat({ "1", state, fence, until_ms, rest, owner, tail }, " ")
    redis.call("SET", record, header .. "\n", "PX", lease_ms + keep_ms)
    words[i] = "renewed"
  end
end
return words
