-- Claim an idempotency key, or say what became of it.
--
-- KEYS[1]  record       "1 <state> <fence> <time_ms> <attempt> <retries> <flags> <owner> <holder> <fingerprint>\n<body>"
-- KEYS[2]  waited       a mark: somebody waits for the end of the run
-- KEYS[3]  wake         list of at most one element, pushed at the end of a run that is waited for; who waits
--                       rotates it (BLMOVE onto itself), so that every one wakes and none polls
--
-- ARGV[1]  owner        token of this claim, made by the caller
-- ARGV[2]  holder       task id or label of who claims
-- ARGV[3]  fingerprint  digest of the request; "-" when nothing is compared
-- ARGV[4]  lease_ms     life of the claim without a renewal
-- ARGV[5]  keep_ms      how much longer the record stays, so that a dead owner leaves a trace
--          The rest is missing where it is 0, 0, 1, 0:
-- ARGV[6]  retries      which attempt of the holder this is
-- ARGV[7]  redelivery   "1": the message may have been delivered before; an ended run is not run again
-- ARGV[8]  takeover     "1": a lapsed claim is taken over; "0": it is reported as interrupted
-- ARGV[9]  wait_ms      how long to be believed to wait for a live claim; "0": does not wait
--
-- Replies
--   {"claimed", fence, attempt, takeover}                         ours now, for lease_ms; takeover is 1 or 0
--   {"running", remaining_ms, fence, retries, holder}             another claim is live
--   {"done"|"failed", fence, retries, age_ms, flags, holder, body}
--   {"ended", fence, retries, age_ms, flags, holder, body}        this holder's run ended with nothing to replay to
--                                                                 others; the body is its failure, if there was one
--   {"interrupted", fence, attempt, holder}                       a run began and its end is unknown
--   {"mismatch", fingerprint}                                     the key belongs to another request
--   {"corrupt", beginning}                                        not a record of this layout; left as it is
--
-- Safe to repeat: the same owner gets "claimed" again, with the same fence and a fresh lease.
-- No allow-oom: a claim refused for want of memory is safe, a completion refused is not.

local record, waited, wake = KEYS[1], KEYS[2], KEYS[3]
local owner, holder, fingerprint = ARGV[1], ARGV[2], ARGV[3]
local lease_ms, keep_ms, retries = ARGV[4], ARGV[5], ARGV[6] or "0"

local time = redis.call("TIME")
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local fence, attempt, taken_over = now_us, 1, 0

local stored = redis.call("GET", record)
if stored then
  local version, state, s_fence, s_time, s_attempt, s_retries, flags, s_owner, s_holder, s_fingerprint, at =
    string.match(stored, "^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)\n()")
  s_fence, s_time = tonumber(s_fence), tonumber(s_time)
  s_attempt, s_retries = tonumber(s_attempt), tonumber(s_retries)
  if version ~= "1" or not (s_fence and s_time and s_attempt and s_retries) then
    return { "corrupt", string.sub(stored, 1, 60) }
  end
  local redelivery, takeover, wait_ms = ARGV[7] == "1", ARGV[8] ~= "0", tonumber(ARGV[9] or "0")
  local same_holder = s_holder == holder
  retries = tonumber(retries)
  local fence_text = string.format("%.0f", s_fence)

  if state == "running" and s_owner == owner then
    attempt, retries = s_attempt, s_retries -- our own claim, whose reply was lost
  elseif not same_holder and fingerprint ~= "-" and s_fingerprint ~= "-" and fingerprint ~= s_fingerprint then
    return { "mismatch", s_fingerprint }
  elseif same_holder and redelivery and retries < s_retries then
    return { "ended", fence_text, s_retries, now_ms - s_time, "f---", s_holder, "" } -- an older attempt
  elseif state == "done" or state == "failed" then
    return { state, fence_text, s_retries, now_ms - s_time, flags, s_holder, string.sub(stored, at) }
  elseif state == "running" and s_time > now_ms then
    if wait_ms > 0 then
      redis.call("SET", waited, "1", "PX", wait_ms)
    end
    return { "running", s_time - now_ms, fence_text, s_retries, s_holder }
  elseif state == "running" and same_holder and retries > s_retries then
    attempt = 1 -- the older attempt ended by publishing this one, and could not say so
  elseif state == "running" and takeover then
    attempt, taken_over = s_attempt + 1, 1
  elseif state == "running" or state == "unknown" then
    return { "interrupted", fence_text, s_attempt, s_holder }
  elseif state == "ended" then
    if same_holder and redelivery and retries <= s_retries then
      return { state, fence_text, s_retries, now_ms - s_time, flags, s_holder, string.sub(stored, at) }
    end
  else
    return { "corrupt", string.sub(stored, 1, 60) }
  end

  if same_holder then
    retries = math.max(retries, s_retries)
  end
  fence = s_owner == owner and s_fence or math.max(s_fence + 1, now_us)
end

local fence_text = string.format("%.0f", fence)
local ends_ms = string.format("%.0f", now_ms + lease_ms)
local header = "1 running " .. fence_text .. " " .. ends_ms .. " " .. attempt .. " " .. retries
  .. " ---- " .. owner .. " " .. holder .. " " .. fingerprint .. "\n"
redis.call("SET", record, header, "PX", lease_ms + keep_ms)
redis.call("DEL", wake) -- the last run's; left over it would make who waits for this one spin
return { "claimed", fence_text, attempt, taken_over }
