#!lua flags=allow-oom
-- Renew several locks in one call.
--
-- KEYS[i]     lock i    see lock_acquire.lua
--
-- ARGV[2i-1]  token i   of the holder
-- ARGV[2i]    ttl_ms i  life of the lock from now
--
-- Reply: one word a lock
--   "renewed"  still ours, for ttl_ms
--   "lost"     another's, or gone
--
-- Safe to repeat. A renewal never creates a lock.

local words = {}
for i, lock in ipairs(KEYS) do
  if redis.call("GET", lock) == ARGV[2 * i - 1] then
    redis.call("PEXPIRE", lock, ARGV[2 * i])
    words[i] = "renewed"
  else
    words[i] = "lost"
  end
end
return words
