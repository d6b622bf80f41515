// Ctrl-C in a command that has something to save.
#pragma once

namespace openmsa::cli {

/// From now on the first SIGINT, SIGTERM or SIGHUP only sets what interrupted() returns; the second ends the process.
/// Signals that the caller has told the process to ignore stay ignored.
void catch_interrupts();
bool interrupted();

}  // namespace openmsa::cli
