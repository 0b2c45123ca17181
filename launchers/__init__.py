"""Where the program meets the machine: the command line, Ray and Kubernetes."""
