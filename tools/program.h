// The program `pupil` as a function. A program that links the library, registers a method of its
// own and calls this has the whole command line with its method in it.
#pragma once
#include "../tensor/core.h"

namespace CLI {
class App;
}

namespace pupil {

// Exit codes: 0 fine, 1 the job failed, 2 usage or bad input, 130 interrupted. Every message is one
// line "pupil: ..." on stderr.
int program(int argc, char** argv);

const char* version();  // "0.1.0"

// Thrown by a job that stopped because of Ctrl-C (SIGINT or SIGTERM); what() says how to go on.
struct Interrupted : Error {
  using Error::Error;
};

// For the commands: --threads N and --exact. The pool itself is set up by use_threads() when the job
// starts. `threads` below 0: the command says all or as resumed.
void add_threads_option(CLI::App& command, int& threads);
void use_threads(int threads);  // 0: all CPUs of this process

}  // namespace pupil
