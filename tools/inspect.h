// pupil inspect: what a file holds, or why it is refused.
#pragma once

namespace CLI {
class App;
}

namespace pupil {
void add_inspect_command(CLI::App&);
}
