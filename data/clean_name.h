// Class names as they were meant.
#pragma once
#include <string>

namespace pupil::data {

// UTF-8 that was read as Latin-1 or Windows-1252 is repaired ("AdÃ©lie" -> "Adélie"), again and
// again while that succeeds, then curly quotes become straight. What is no such text stays, and so
// does what is not UTF-8.
std::string clean_name(const std::string& name);

}  // namespace pupil::data
