#!lua flags=allow-oom
-- Renew several locks in one call.
--
-- KEYS     for each lock: lock and fence, see lock_acquire.lua
-- ARGV     for each lock: token, ttl_ms, memory_ms
--
-- Replies  for each lock, in order
--   "renewed"  it lives ttl_ms from now
--   "lost"     it is not this token's any more; nothing changed, and nothing is created
--
-- Safe to repeat.

local answers = {}
for i = 1, #KEYS / 2 do
  local lock, fence, token = KEYS[2 * i - 1], KEYS[2 * i], ARGV[3 * i - 2]
  if redis.call("GET", lock) == token then
    redis.call("PEXPIRE", lock, ARGV[3 * i - 1])
    redis.call("PEXPIRE", fence, ARGV[3 * i])
    answers[i] = "renewed"
  else
    answers[i] = "lost"
  end
end
return answers
