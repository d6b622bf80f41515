#include "msa/interrupt.h"

#include <csignal>
#include <initializer_list>

namespace openmsa::cli {
namespace {

volatile std::sig_atomic_t signalled = 0;

}  // namespace

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { signalled = 1; };
  action.sa_flags = SA_RESETHAND | SA_RESTART;
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction old {};
    if (::sigaction(number, nullptr, &old) == 0 && old.sa_handler != SIG_IGN) ::sigaction(number, &action, nullptr);
  }
}

bool interrupted() { return signalled != 0; }

}  // namespace openmsa::cli
