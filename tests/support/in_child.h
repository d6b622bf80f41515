// What a child of fork makes of a piece of work.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

namespace openmsa::test {

/// Forks, runs `body` in the child and gives the child's wait status: 0 where `body` has returned true, and not 0 where
/// it has returned false or taken longer than a minute.
template <class Body>
int in_child(const Body& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);
    ::_exit(body() ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  return status;
}

}  // namespace openmsa::test
