// Package ktls is kernel TLS for Go: a server connection whose handshake is
// crypto/tls's own and whose records the Linux kernel encrypts.
//
//	net.TCPConn -> tap (records, sequence numbers, control records) -> crypto/tls -> Conn
//
// A [Conn] starts as an ordinary crypto/tls connection that counts records.
// [Conn.Upgrade] moves its sending side into the kernel (setsockopt
// TCP_ULP "tls", TLS_TX); from then on [Conn.Write] writes plain text to the
// socket and [Conn.SendFile] lets the kernel encrypt file pages straight out of
// the page cache. Receiving stays with crypto/tls, which also goes on sending
// what the protocol asks of it (alerts, close_notify): the tap opens those
// records and passes them on through the kernel as control records.
//
// With [Options.RX] receiving moves into the kernel too (TLS_RX), in [Conn.Read],
// between two records and not before the client's key and sequence number have
// opened one.
//
// No unexported field of crypto/tls is read. The traffic secrets come from
// tls.Config.KeyLogWriter, the sequence number is counted, and both are
// accepted only if they open the last record that the handshake wrote. Whatever
// fails before TLS_TX is set leaves a working crypto/tls connection and an
// [UpgradeError] with a stable reason code; after it nothing can fail.
//
// The package knows nothing of HTTP or Caddy. On systems other than Linux it
// builds, and every upgrade is refused with [ReasonKernel].
//
// # Events and states
//
// What a connection does when something happens, and the test that shows it. The
// states are: handshake, until it is complete; crypto/tls, before the upgrade or
// without one; kernel sends, after it; kernel reads, where it receives too, if that
// makes a difference; closed, after CloseWrite, with reading still open, and after
// Close and Abort. Alerts are those of RFC 8446, section 6, and RFC
// 5246, section 7.2. "-" stands for what can't happen.
//
//	KeyUpdate received, no answer wanted (TLS 1.3)
//	  handshake     alert unexpected_message; the handshake fails        TestHandshakeFaults
//	  crypto/tls    reading goes on under the next key                   TestKeyUpdateReceived
//	  kernel sends  reading goes on under the next key                   TestKeyUpdateReceived
//	  kernel reads  reading goes on under the next key                   TestReceiveKeyUpdates
//	  kernel reads  before the switch: the kernel gets the next key      TestReceiveKeyUpdateBeforeTheSwitch
//	  kernel reads  kernel can't rekey: alert internal_error, the end    TestReceiveKeyUpdateWhereTheKernelCantRekey
//	  kernel reads  key not taken by the kernel: the same                TestReceiveRekeyFault
//	  kernel reads  too many: alert unexpected_message, the end          TestReceiveKeyUpdateFlood
//	  closed        after CloseWrite, reading goes on the same way       TestNothingFollowsCloseNotify
//
//	KeyUpdate received, answer wanted (TLS 1.3)
//	  handshake     alert unexpected_message; the handshake fails        TestHandshakeFaults
//	  crypto/tls    crypto/tls answers; the upgrade takes the next key   TestUpgradeAfterKeyUpdate
//	  crypto/tls    an answer that is blocked ends with its deadline     TestUpgradeWhileAnAnswerIsBlocked
//	  kernel sends  answered under the old key, then the next one        TestKeyUpdatesDuringSendFile
//	  kernel sends  the answer doesn't wait for the end of a file        TestKeyUpdateIsAnsweredWithinSendFile
//	  kernel sends  what MSG_MORE held back goes before the answer       TestKeyUpdateWithOpenRecord
//	  kernel sends  key not taken by the kernel: cut off                 TestRekeyFault
//	  kernel sends  too many: alert unexpected_message, the end          TestKeyUpdateFlood
//	  kernel sends  kernel can't rekey: alert internal_error, the end    TestKeyUpdateIsRefusedWhereTheKernelCantRekey
//	  kernel reads  answered, also within a file; then the same          TestReceiveKeyUpdatesDuringSendFile
//	  kernel reads  two in a record: alert unexpected_message, the end   TestReceivedRecordErrors
//	  kernel reads  after CloseWrite not answered; reading goes on    TestReceiveAfterCloseWrite
//	  closed        after CloseWrite not answered; reading goes on       TestNothingFollowsCloseNotify
//
//	KeyUpdate received (TLS 1.2 has none)
//	  handshake     alert unexpected_message; the handshake fails        TestHandshakeFaults
//	  crypto/tls    alert unexpected_message; no upgrade any more        TestKeyUpdateReceived
//	  kernel sends  alert unexpected_message; the end                    TestKeyUpdateReceived
//	  kernel reads  alert unexpected_message; the end                 TestReceivedRecordErrors
//	  closed        Read fails; nothing is sent                          TestNothingFollowsCloseNotify
//
//	usage limit of our key reached, kernel can rekey (TLS 1.3)
//	  handshake     -
//	  crypto/tls    nothing; the kernel's first write changes the key    TestKeyLimitPassedBeforeUpgrade
//	  kernel sends  KeyUpdate of ours, then the next key                 TestKeyLimitChangesTheKey
//	  closed        -
//
//	usage limit of our key near or reached, otherwise
//	  handshake     -
//	  crypto/tls    no upgrade from half of it on                        TestKeyLimitRefusesUpgrade
//	  kernel sends  Expiring from half of it on                          TestKeyLimitEndsTheConnection
//	  kernel sends  reached: alert internal_error, the end               TestKeyLimitEndsTheConnection
//	  closed        -
//
//	fatal alert received
//	  handshake     the handshake fails                                  TestHandshakeFaults
//	  crypto/tls    Read fails; writing goes on                          TestFatalAlertReceived
//	  kernel sends  Read fails; writing goes on                          TestFatalAlertReceived
//	  kernel reads  the same                                             TestReceivedAlerts
//	  closed        Read fails                                           TestFatalAlertReceived
//
//	warning received
//	  handshake     before ClientHello: nothing                          TestWarningDuringHandshake
//	  crypto/tls    nothing (TLS 1.2); as a fatal alert (TLS 1.3)        TestWarningReceived
//	  kernel sends  nothing (TLS 1.2); as a fatal alert (TLS 1.3)        TestWarningReceived
//	  kernel reads  the same; 16 in a row, then the end                  TestUselessRecords
//	  closed        nothing (TLS 1.2); as a fatal alert (TLS 1.3)        TestWarningReceived
//
//	forged record received, or another fault of the peer's
//	  handshake     alert; the handshake fails                           TestHandshakeFaults
//	  crypto/tls    alert bad_record_mac; no write, no upgrade any more  TestUpgradeRefusedAfterFatalAlert
//	  kernel sends  the same alert, through the kernel                   TestAlertsOfCryptoTLSReachTheClient
//	  kernel sends  within a file: between two records, and it ends      TestAlertDuringSendFile
//	  kernel reads  alert, the end of writing too                        TestReceivedRecordErrors
//	  kernel reads  within a file: the alert ends it                     TestForgedRecordDuringSendFile
//	  kernel reads  the kernel told a writer: the same                   TestWriterLearnsOfAForgedRecord
//	  closed        Read fails; nothing is sent                          TestNothingFollowsCloseNotify
//
//	fatal alert sent
//	  handshake     the handshake fails for good                         TestHandshakeFaults
//	  crypto/tls    the last record; Close sends no close_notify         TestFatalAlertIsTheLastRecord
//	  kernel sends  the last record; Close sends no close_notify         TestFatalAlertIsTheLastRecord
//	  kernel sends  not taken by the peer: Close waits for 5 s           TestCloseWhileAnAlertIsBlocked
//	  kernel reads  not taken by the peer: Close waits for 5 s           TestCloseWhileReadersAlertIsBlocked
//	  closed        -
//
//	close_notify received
//	  handshake     the handshake fails                                  TestHandshakeFaults
//	  crypto/tls    Read returns io.EOF; writing goes on                 TestCloseNotifyReceived
//	  kernel sends  Read returns io.EOF; writing goes on                 TestCloseNotifyReceived
//	  kernel reads  the same                                             TestReceiveForEverySuite
//	  closed        Read returns io.EOF                                  TestCloseNotifyReceived
//
//	end of TCP without close_notify
//	  handshake     the handshake fails                                  TestHandshakeFaults
//	  crypto/tls    io.EOF, or io.ErrUnexpectedEOF within a record       TestEndWithoutCloseNotify
//	  crypto/tls    the upgrade is refused from then on                  TestUpgradeRefusedForHalfClosedPeer
//	  kernel sends  io.EOF, or io.ErrUnexpectedEOF within a record       TestEndWithoutCloseNotify
//	  kernel reads  the same                                             TestReceiveEndOfStream
//	  closed        io.EOF, or io.ErrUnexpectedEOF within a record       TestEndWithoutCloseNotify
//
//	reset by the peer, or another error of a write
//	  handshake     the handshake fails                                  TestHandshakeFaults
//	  crypto/tls    all calls fail; no upgrade any more                  TestPeerReset
//	  crypto/tls    during Write: it fails, and all that follow          TestPeerResetDuringWrite
//	  crypto/tls    record written in part: no upgrade                   TestPartialWriteRefusesUpgrade
//	  kernel sends  all calls fail                                       TestPeerReset
//	  kernel sends  during SendFile: it fails, and all that follow       TestPeerResetDuringSendFile
//	  kernel sends  the same if Read was told of the reset               TestPeerResetReadDuringSendFile
//	  kernel reads  Read fails                                           TestReceiveReset
//	  closed        Read fails                                           TestPeerReset
//
//	write deadline passes
//	  handshake     the handshake fails for good                         TestHandshakeDeadlines
//	  crypto/tls    Write and all that follow fail; no close_notify      TestWriteDeadline
//	  kernel sends  Write and all that follow fail; no close_notify      TestWriteDeadline
//	  kernel sends  the same for SendFile                                TestSendFileWriteDeadline
//	  closed        Close has 5 s of its own for close_notify            TestCloseOfPeerThatNeverReads
//
//	read deadline passes
//	  handshake     the handshake fails for good                         TestHandshakeDeadlines
//	  crypto/tls    Read fails; a later one may succeed                  TestReadDeadline
//	  kernel sends  Read fails; a later one may succeed                  TestReadDeadline
//	  kernel reads  the same                                             TestReceiveDeadline
//	  kernel reads  within WriteTo: nothing is lost                      TestSpliceDeadline
//	  closed        after CloseWrite the same                            TestReadDeadline
//
//	SendFile of a file that is shorter, or becomes it
//	  handshake     ErrNotOffloaded, as for every file                   TestSendFileNeedsUpgrade
//	  crypto/tls    ErrNotOffloaded, as for every file                   TestSendFileNeedsUpgrade
//	  kernel sends  too short at first: nothing is sent, no more writes  TestSendFileOfShorterFile
//	  kernel sends  what is there is sent, no more writes, no padding    TestSendFileOfFileTruncatedMeanwhile
//	  closed        fails, as for every file                             TestCallsAfterTheEnd
//
//	Upgrade once more
//	  handshake     refused; may be tried again                          TestUpgradeRefusedBeforeHandshakeMayBeTriedAgain
//	  crypto/tls    refused as the first time                            TestUpgradeRefusals
//	  kernel sends  nothing                                              TestUpgradeConcurrently
//	  closed        refused if it wasn't upgraded before                 TestCallsAfterTheEnd
//
//	renegotiation (TLS 1.2)
//	  handshake     alert unexpected_message; the handshake fails        TestHandshakeFaults
//	  crypto/tls    alert; no write, no upgrade any more                 TestRenegotiationEndsWriting
//	  kernel sends  alert; no write any more                             TestRenegotiationEndsWriting
//	  kernel reads  alert; the end                                       TestReceivedRecordErrors
//	  closed        Read fails; nothing is sent                          TestNothingFollowsCloseNotify
//
//	CloseWrite
//	  handshake     fails; the handshake goes on                         TestCloseDuringHandshake
//	  crypto/tls    close_notify, the last record; reading goes on       TestCloseWriteLeavesReading
//	  crypto/tls    during Write: waits for its end                      TestCloseWriteDuringWriteAndSendFile
//	  kernel sends  close_notify, the last record; reading goes on       TestCloseWriteLeavesReading
//	  kernel sends  during SendFile: waits for its end                   TestCloseWriteDuringWriteAndSendFile
//	  closed        nothing                                              TestNothingFollowsCloseNotify
//
//	Close
//	  handshake     closes TCP; the handshake fails                      TestCloseDuringHandshake
//	  crypto/tls    close_notify, the last record                        TestCloseSendsCloseNotifyBeforeUpgrade
//	  crypto/tls    during Write: no close_notify, the peer sees a cut   TestCloseDuringWrite
//	  kernel sends  close_notify, the last record                        TestCloseSendsOneCloseNotifyAfterTheLastByte
//	  kernel sends  what MSG_MORE held back goes before                  TestCloseFlushesWriteMore
//	  kernel sends  no room for close_notify: waits for 5 s              TestCloseNotifyWaitsForRoom
//	  kernel sends  and what was sent before arrives even after that     TestSlowPeerGetsAllAfterClose
//	  kernel sends  during SendFile: no close_notify                     TestCloseDuringSendFile
//	  kernel reads  a blocked Read ends                                  TestCloseWakesReader
//	  closed        no second close_notify; net.ErrClosed after Close    TestCallsAfterTheEnd
//
//	Abort
//	  handshake     closes TCP; the handshake fails                      TestCloseDuringHandshake
//	  crypto/tls    closes TCP; blocked calls return its reason          TestAbortEndsBlockedCalls
//	  kernel sends  closes TCP; blocked calls return its reason          TestAbortDuringSendFile
//	  kernel reads  a blocked Read returns its reason                    TestCloseWakesReader
//	  closed        nothing after Close                                  TestCallsAfterTheEnd
package ktls
