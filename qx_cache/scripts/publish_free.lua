#!lua flags=allow-oom
-- Free a name of work that begins, or that will never run.
--
-- KEYS[1]  queued   see publish_claim.lua
--
-- ARGV[1]  id       of the work
--
-- Replies
--   {"freed"}   the name is free
--   {"other"}   that work has no claim; nothing changed
--
-- Safe to repeat: the second time says "other".

local queued, id = KEYS[1], ARGV[1]
if string.sub(redis.call("GET", queued) or "", 3) ~= id then
  return { "other" }
end
redis.call("DEL", queued)
return { "freed" }
