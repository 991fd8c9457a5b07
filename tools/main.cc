#include "program.h"

int main(int argc, char** argv) { return pupil::program(argc, argv); }
