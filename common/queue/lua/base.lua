#!lua name=pseg1
-- The queue's state machine. Every operation on a job is one of these functions: one round trip, and
-- all of it or nothing. docs/job-lifecycle.md draws the transitions, proto/KEYS.md lists the keys.
--
-- KEYS[1] is the queue's prefix, "pseg:{NAME}:"; all other keys are made from it, so that they lie in
-- one slot of a cluster. Redis' clock is the only clock. Numbers are written by %.0f, since Lua would
-- write large ones with an exponent.
--
-- A failure that the caller must tell apart is an error reply "PSEG <REASON> <message>".
--
-- A redis.call costs more than the Lua around it, so submit and publish take many jobs at once, and
-- what many jobs write into one key is gathered in a `batch` and written when the function ends.
--
-- The library is the files of this folder, joined in the order of ../CMakeLists.txt; REVISION counts their
-- changes. A process loads its copy where an older one lies and leaves a newer one in place, so from the
-- first release on a function of "pseg1" keeps its arguments and its answer, and new arguments are added at
-- the end; what cannot be done so is a library "pseg2".

local REVISION = 22
local EVENTS_MAX = 100000
local ENTRY_FIELDS = 2000               -- of one entry among the events, about
local STEP_ENTRIES = 8                  -- of the events, in hand at once
local PIECE_FIELDS = 8000               -- of the events, looked through by one call
local MODEL_KEPT_US = 86400 * 1000000 -- after its last worker's last heartbeat
local WORKER_KEPT_MS = 3600 * 1000    -- the record of a lost worker, until a sweep has tidied up
local LAYOUT_KEPT_MS = { used = 30 * 86400 * 1000, empty = 60 * 1000 } -- since the last sweep
local CASE_KEPT_US = 7 * 86400 * 1000000 -- a job in quarantine
local HEAD_START_US = 60 * 1000000    -- of one step of priority before those that came at the same time
local DELAY_MAX_MS = 300 * 1000         -- of another attempt
local FIRST_COST_US = 10000           -- of a job, until one of its model has told
local LOOK_AHEAD, LOOK_SHARED = 16, 8 -- jobs of a line that are looked at besides those wanted; of one among others
local LOOKS = 64                      -- in all, besides those wanted
local HOLDER_KEPT_MS = 60 * 1000      -- who has an image at hand, since its last claim
local EVIDENCE_BYTES = 3000           -- of one attempt

local function text(x) return string.format('%.0f', x) end
-- Scores are whole milliseconds: rounded up when they are set and down when they are compared, so that
-- nothing happens early.
local function ms_up(us) return text(math.ceil(us / 1000)) end
local function ms(us) return text(math.floor(us / 1000)) end

local function now_us()
    local t = redis.call('TIME')
    return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function fail(reason, message)
    return redis.error_reply('PSEG ' .. reason .. ' ' .. message)
end
