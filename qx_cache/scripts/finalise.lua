#!lua flags=allow-oom
-- Mark a recorded result, or failure, as passed on: it is stored where it was to be, and what follows is dispatched.
--
-- KEYS[1]  record  see claim.lua
--
-- ARGV[1]  fence   fence of the run whose end it is
--
-- Replies
--   {"finalised"}  the mark is there
--   {"lost"}       no end of that run; nothing changed
--
-- Safe to repeat: the mark is set again.

local record, fence = KEYS[1], ARGV[1]

local header = redis.call("GETRANGE", record, 0, 511)
local version, state, s_fence, flags_at =
  string.match(header, "^(%S+) (%S+) (%S+) %S+ %S+ %S+ ()%S%S%S%S %S+ %S+ %S+\n")
if version ~= "1" or s_fence ~= fence or (state ~= "done" and state ~= "failed" and state ~= "ended") then
  return { "lost" }
end
redis.call("SETRANGE", record, flags_at - 1, "f")
return { "finalised" }
