// pupil bench: training steps per second of four fixed jobs.
#pragma once

namespace CLI {
class App;
}

namespace pupil {
void add_bench_command(CLI::App&);
}
