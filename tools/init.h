// pupil init: prints a commented configuration.
#pragma once

namespace CLI {
class App;
}

namespace pupil {
void add_init_command(CLI::App&);
}
