// pupil explain: what a method computes, where its equations stand in the source, what proves it.
#pragma once
#include <span>

namespace CLI {
class App;
}

namespace pupil {

// A marker "[aft 3]" in a comment of the sources that this program was built from.
struct EquationLine {
  const char *method, *equation, *file;  // file: relative to the source tree
  int line;
};
std::span<const EquationLine> equation_lines();

void add_explain_command(CLI::App&);

}  // namespace pupil
