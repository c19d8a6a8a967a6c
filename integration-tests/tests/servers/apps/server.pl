use strict;
use DBI;
use IO::Socket::INET;

my $database = DBI->connect('dbi:Pg:', undef, undef, { RaiseError => 1 });
my $listener = IO::Socket::INET->new(LocalPort => $ENV{PORT}, Listen => 5, ReuseAddr => 1) or die $!;
while (my $client = $listener->accept) {
    while (my $line = <$client>) { last if $line =~ /^\r?\n$/ }
    my ($word) = $database->selectrow_array("SELECT 'hel' || 'lo'");
    print $client "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\n$word";
    close $client;
}
die "accept: $!";
