// Ctrl-C as a question that a long job asks between its steps.
#pragma once
#include <signal.h>

namespace pupil {

// While one exists, the first SIGINT or SIGTERM only makes interrupted() true; a second one ends
// the process.
class Signals {
 public:
  Signals();
  ~Signals();
  Signals(const Signals&) = delete;

 private:
  struct sigaction old_int_, old_term_;
};
bool interrupted();

}  // namespace pupil
