#!lua flags=allow-oom
-- Note that the end of a guarded run, which its release has noted before, has been told to all who await it.
--
-- KEYS[1]  ended     see lock_acquire.lua
--
-- ARGV[1]  retries   which attempt of the run it is
-- ARGV[2]  ended_ms  how long that is remembered
--
-- Replies
--   "noted"  a redelivery of this attempt does not run again
--
-- Safe to repeat: the end of a later attempt stays as it is.

local ended, retries, ended_ms = KEYS[1], ARGV[1], ARGV[2]

local before = string.match(redis.call("GET", ended) or "", "^%d+")
if not before or tonumber(before) <= tonumber(retries) then
  redis.call("SET", ended, retries, "PX", ended_ms)
end
return "noted"
