module holm.test/program

go 1.19
